"""Decides and talks: watches the Hub, queues jobs, publishes cards. The only holder of tokens."""
