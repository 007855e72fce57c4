//! An emulated Proxmox host made of network namespaces.
