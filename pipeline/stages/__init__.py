"""The stages of the road: each turns files plus a frozen config into files plus a record."""
