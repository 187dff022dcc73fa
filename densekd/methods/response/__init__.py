"""Methods that compare what a network answers: logits, boxes."""
