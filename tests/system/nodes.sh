#!/usr/bin/env bash
# A machine with one or two nodes, in namespaces of its own: no process outside can be seen or stopped from in here.
#
#     nodes.sh COMMAND ...       COMMAND is on node 1 (10.99.0.1); `on-node-2 COMMAND ...` runs on node 2 (10.99.0.2)
#
# Node 2 has its own network, its own processes and its own /tmp/ray. Everything ends with COMMAND.
set -euo pipefail

if [ -z "${INSIDE:-}" ]; then
    INSIDE=yes exec unshare --pid --net --mount --fork --mount-proc --kill-child "$0" "$@"
fi
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/bin
ip link set lo up
ip netns add node2
ip link add one type veth peer name two netns node2
ip address add 10.99.0.1/24 dev one
ip link set one up
ip -n node2 link set lo up
ip -n node2 address add 10.99.0.2/24 dev two
ip -n node2 link set two up
cat > /run/bin/on-node-2 <<'END'
#!/usr/bin/env bash
export RAY_TMPDIR=$RAY_TMPDIR/2
mkdir -p "$RAY_TMPDIR"
exec ip netns exec node2 unshare --pid --fork --mount-proc --kill-child "$@"
END
chmod +x /run/bin/on-node-2
export PATH="/run/bin:$PATH"
"$@" # not exec: this shell is the init process, and everything ends with it
