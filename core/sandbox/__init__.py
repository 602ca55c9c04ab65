"""How a stranger's file is run: in a process of its own that can take nothing away and leave nothing behind."""
