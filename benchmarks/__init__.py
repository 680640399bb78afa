"""Every figure the README claims, one command each."""
