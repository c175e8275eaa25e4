"""Reference data: grids, units, staff, organisations, persons, modes."""
