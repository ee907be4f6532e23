"""Contrastive training of encoders and the choice among them."""
