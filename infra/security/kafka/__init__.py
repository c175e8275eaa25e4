"""Kafka's access rules as data, and the program that applies them."""
