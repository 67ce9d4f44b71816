"""What a fleet will do and cost: capacity planner and simulator."""
