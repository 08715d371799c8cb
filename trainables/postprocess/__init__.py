"""What is done to a trained classifier before it is used."""
