"""Persons, regions and a checkpoint → one injection, and what is told about it."""
