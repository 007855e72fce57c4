//! One table: names, addresses, leases, vhosts and the World derived from them.
