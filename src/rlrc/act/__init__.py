"""Policies at work in worlds: actors, rollouts, success rates."""
