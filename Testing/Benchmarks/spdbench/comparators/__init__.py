"""What SPD is compared with: every system behind one interface, the clicks and the slices the same for all."""
