"""The small reasoning model that ships with Baton: its problems, training, evaluation and weights."""
