"""What a run leaves behind: records, the folder that keeps them, and how figures are written."""
