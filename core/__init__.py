"""What every room shares: the contract, protocols, GGUF headers, audits, statistics, verdicts. Pure."""
