"""What models exist and who holds them: signed version records, inventories, gossip with repair."""
