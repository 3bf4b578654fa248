"""Training: the step's loss, the loop that can be killed, and everything around them."""
