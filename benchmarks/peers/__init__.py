"""Peers: the step of official codes, fetched by the user, against ours."""
