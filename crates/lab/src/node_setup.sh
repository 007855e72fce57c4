# First process of a node (PID 1 of its namespace). $1 is the node's name, $2 a machine id.
# Everything a stock daemon writes goes to private memory, so that the machine's own files stay
# untouched and two nodes never meet in a file.
set -e
umask 022
# Read before the new /proc is mounted: the PID by which the lab knows this process.
read -r pid rest < /proc/self/stat
mount -t proc proc /proc
# Shows the interfaces of this namespace; some kernels refuse it in nested namespaces.
mount -t sysfs sysfs /sys 2>/dev/null || :
hostname "$1"
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/etc.private
cd /etc
name=$1 machine=$2
set --
for entry in alternatives dhcp udhcpc dhcpcd.conf nginx ssl passwd group services protocols \
    ld.so.cache ld.so.conf ld.so.conf.d iproute2 localtime mime.types host.conf gai.conf; do
    [ ! -e "$entry" ] || set -- "$@" "$entry"
done
# Entries an ordinary user may not read are left out.
cp -dR "$@" /run/etc.private/ 2>/dev/null || :
cd /run/etc.private
echo "$name" > hostname
echo "$machine" > machine-id
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$name" > hosts
# Plain files and DNS only: a machine's mDNS or resolved modules would answer .local by themselves.
printf 'passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n' > nsswitch.conf
# Scripts of DHCP clients look into it.
: > fstab
: > resolv.conf
# Without setgroups (one single mapped user) daemons cannot change user or group. dhcpcd then runs
# without privilege separation if its user does not exist, and dnsmasq keeps its groups if it finds
# none to change to: neither `dip` nor the one its user belongs to.
if [ "$(cat /proc/self/setgroups 2>/dev/null)" = deny ]; then
    sed -i -e '/^_\{0,1\}dhcpcd:/d' -e 's/^root:x:0:0:/root:x:0:65533:/' passwd
    printf 'root:x:0:\nnogroup:x:65534:\n' > group
fi
cd /
mount --bind /run/etc.private /etc
mount -t tmpfs -o mode=755 lib /var/lib
mount -t tmpfs -o mode=755 log /var/log
mkdir -p /var/lib/dhcp /var/lib/dhcpcd /var/lib/misc /var/lib/nginx /var/lib/proximity \
    /var/log/nginx /var/log/proximity
ip link set lo up
echo "ready $pid"
# Children of daemons that go to the background end up here; ignored, they are reaped by the kernel.
trap '' CHLD
# Lives as long as its owner holds the other end of standard input.
exec cat > /dev/null 2>&1
