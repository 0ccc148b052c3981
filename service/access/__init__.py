"""Who may do what: keys, sessions of browsers, the scope that each operation needs, what belongs to which tenant, and
how much of everything a tenant may have. No HTTP here (`service.api.access`)."""
