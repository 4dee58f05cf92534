"""Sessions that the steadfast load balancer keeps; see the modules `flask` and `django`."""
