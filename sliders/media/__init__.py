"""Media: what differs between models of pictures and of text, one file each."""
