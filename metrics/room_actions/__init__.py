"""RoomPlan-style actions against reference boxes; `evaluate.load("metrics/room_actions")`."""
