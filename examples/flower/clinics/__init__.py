"""A federation of clinics."""
