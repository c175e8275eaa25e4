"""What the KPI calls for now are made of, held in memory and kept up with the tables part by part."""
