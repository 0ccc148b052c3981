"""One router per resource. An endpoint is a typed signature, one domain call and a return; rules and SQL live in
`service.domain`."""
