"""From the store to people: card sections, pull requests, the results dataset."""
