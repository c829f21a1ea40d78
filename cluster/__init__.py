"""Where and when: coordinator, ledger, fleets, weight store, verifier service, monitor, CLI."""
