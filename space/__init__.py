"""The leaderboard: a Gradio app over the published dataset. Deployable with ``core`` alone."""
