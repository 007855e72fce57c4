//! Reverse proxy: Host to vhost to backend, health, pages and access log.
