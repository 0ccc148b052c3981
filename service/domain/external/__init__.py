"""Upgrades of galleries in other stores, in place: the new side beside the old one, verified, switched, finalized."""
