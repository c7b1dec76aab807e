"""The training engine: packed rows, the two-branch forward, reference log-probs, the trainer. Import its modules."""
