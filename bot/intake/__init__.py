"""From the Hub to the store: which repos changed, which variants they hold, what those are measured against."""
