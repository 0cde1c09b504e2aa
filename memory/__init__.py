"""What a stream leaves behind: chunks of keys and values, and how they are found again."""
