"""Still pictures of volumes that are in use."""
