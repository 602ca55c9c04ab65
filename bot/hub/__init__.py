"""The one door to the Hub: what we ask of it, the real client, and its dry-run twin."""
