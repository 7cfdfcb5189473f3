"""A loss's card: what it is and what shape it has."""
