"""One router per resource. An endpoint is a typed signature, calls of `service.domain`, where rules and SQL live, and a
view of what they return."""
