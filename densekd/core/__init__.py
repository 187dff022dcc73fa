"""What a distiller is made of: taps, connectors, losses, heads, the teacher. torch only."""
