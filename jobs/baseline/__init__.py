"""What is recorded once from a reference and compared with ever after."""
