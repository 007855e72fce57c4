#!/bin/sh
# An appliance put together from stock daemons, to test the lab with: called as `appliance.sh run`.
# dnsmasq gives leases and names, nftables translates addresses, nginx routes by Host header.
set -eu
ip link set eth0 up
ip link set eth1 up
# The WAN address comes from the home router's reservation.
udhcpc -q -n -f -i eth0 -T 1 -t 10
ip addr add 10.20.0.1/24 dev eth1
echo 1 > /proc/sys/net/ipv4/ip_forward
nft -f - <<NFT
table inet appliance {
    chain forward {
        type filter hook forward priority filter;
        iifname "eth1" ip daddr 192.168.1.0/24 reject
    }
    chain input {
        type filter hook input priority filter;
        iifname "eth1" tcp dport 9090 reject with tcp reset
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "eth0" masquerade
    }
}
NFT
cat > /etc/dnsmasq.conf <<DNSMASQ
user=root
no-resolv
no-hosts
server=8.8.8.8
interface=eth1
bind-interfaces
domain=prox.local
local=/prox.local/
dhcp-fqdn
dhcp-authoritative
no-ping
dhcp-range=10.20.0.100,10.20.0.250,12h
dhcp-option=option:router,10.20.0.1
dhcp-option=option:domain-search,prox.local
log-dhcp
log-facility=/var/log/dnsmasq.log
DNSMASQ
dnsmasq
mkdir -p /run/proximity
rm -f /run/proximity/admin.sock
processes='user root;'
# A single mapped user cannot even change to itself.
if [ "$(cat /proc/self/setgroups)" = deny ]; then processes='user root; master_process off;'; fi
cat > /etc/nginx/nginx.conf <<NGINX
daemon off;
$processes
pid /run/nginx.pid;
error_log /var/log/nginx/error.log;
events { worker_connections 256; }
http {
    access_log off;
    server {
        listen unix:/run/proximity/admin.sock;
        location /readyz { return 200 "ready"; }
    }
    server { listen 9090; return 200 "stock user interface\n"; }
    server {
        listen 80;
        resolver 10.20.0.1 ipv6=off;
        location / { proxy_pass http://\$host; }
    }
}
NGINX
exec nginx
