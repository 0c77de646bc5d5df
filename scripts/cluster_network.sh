# Sourced by simulate_cluster.sh: nodes that are namespaces of this machine, joined by a bridge in a namespace of its own.
# shellcheck shell=bash

# RFC 2544's range for tests of networks: no host outside has such an address.
network=198.18.0
# Jumbo frames, as between the machines of a cluster; headers are 0.7 % of a full one (4.4 % at 1500 bytes).
mtu=9000
frame=$((mtu + 14))
step_s=10 # bounds the wait for whatever the kernel is asked to do

bridge=     # process that holds the bridge's network
holders=()  # processes that hold the nodes' namespaces
networks=() # all of these networks, as /proc/<process>/ns/net names them

require_tools() {
    local tool problem
    for tool in ip tc unshare nsenter setpriv taskset; do
        command -v "$tool" >/dev/null || bad_input "$tool not found; expected iproute2 (ip, tc) and util-linux to be installed"
    done
    problem=$(unshare --net --mount --pid --fork true 2>&1) ||
        bad_input "cannot make namespaces (${problem%%$'\n'*}); expected to run as root, with CAP_SYS_ADMIN and CAP_NET_ADMIN"
}

address_of() {
    echo "$network.$(($1 + 1))"
}

# Namespaces without a name live as long as a process in them: should this script be killed outright, the kernel ends
# these holders, with the first process of a node all others of that node, and with the last of them every link.
# Arguments: the number of nodes; a folder for marks of readiness.
hold_namespaces() {
    local node
    setpriv --pdeathsig KILL unshare --net sleep infinity &
    bridge=$!
    for ((node = 0; node < $1; node++)); do
        # shellcheck disable=SC2016 # expanded by the inner shell
        setpriv --pdeathsig KILL unshare --net --mount --pid --fork --kill-child --mount-proc \
            bash -c 'mount -t sysfs sysfs /sys && : >"$0" && { sleep infinity & wait; }' "$2/ready_$node" &
        holders[node]=$!
    done
    disown "$bridge" "${holders[@]}" # else the shell has words of its own about their end
    await "the network of the bridge" is_apart "$bridge"
    networks=("$(readlink "/proc/$bridge/ns/net")")
    for ((node = 0; node < $1; node++)); do
        await "the namespaces of node $node" test -e "$2/ready_$node"
        networks+=("$(readlink "/proc/${holders[node]}/ns/net")")
    done
}

is_apart() {
    [ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/$$/ns/net)" ]
}

# Waits for a condition: await WHAT COMMAND ...
await() {
    local what=$1 end=$((SECONDS + step_s))
    shift
    until "$@"; do
        [ "$SECONDS" -le "$end" ] || fail "$what did not come about within $step_s s"
        sleep 0.05
    done
}

# Arguments: the link's rate, as tc writes it, or nothing.
join_nodes() {
    local rate=$1 node peer
    in_network "$bridge" ip link add bridge mtu "$mtu" type bridge mcast_snooping 0
    raise "$bridge" bridge
    for node in "${!holders[@]}"; do
        peer=${holders[node]}
        in_network "$bridge" ip link add "node$node" mtu "$mtu" type veth peer name eth0 mtu "$mtu" netns "$peer"
        in_network "$bridge" ip link set "node$node" master bridge
        in_network "$peer" ip address add "$(address_of "$node")/24" dev eth0
        if [ -n "$rate" ]; then
            # shellcheck disable=SC2046 # several words
            in_network "$peer" tc qdisc add dev eth0 root $(shaping "$rate") # what the node sends
            # shellcheck disable=SC2046
            in_network "$bridge" tc qdisc add dev "node$node" root $(shaping "$rate") # what it receives
        fi
        in_network "$peer" ip link set lo up
        raise "$bridge" "node$node"
        raise "$peer" eth0
    done
}

# IPv6, where there is any, gets no address of its own accord: its chatter would only add to the counters.
raise() {
    nsenter "--net=/proc/$1/ns/net" ip link set "$2" addrgenmode none 2>/dev/null || true
    in_network "$1" ip link set "$2" up
}

# Runs a command of iproute2 in the network of the given process; its own words are the error's.
in_network() {
    local problem
    problem=$(timeout "$step_s" nsenter "--net=/proc/$1/ns/net" "${@:2}" 2>&1) || fail "${*:2}: ${problem%%$'\n'*}"
}

# A token bucket lets what fits in it pass at once, so it should be small beside a message; but it must last until the
# kernel's timer refills it: 1 ms of the rate, and at least two frames. The queue holds more than TCP keeps in flight, so
# that it never drops: a cluster's fabric has flow control, and a lost packet here could stall a connection for 200 ms.
shaping() {
    local number=${1%?bit} bytes_a_ms
    case $1 in
        *kbit) bytes_a_ms=$((number / 8)) ;;
        *mbit) bytes_a_ms=$((number * 125)) ;;
        *gbit) bytes_a_ms=$((number * 125000)) ;;
    esac
    echo "tbf rate $1 burst $((bytes_a_ms > 2 * frame ? bytes_a_ms : 2 * frame)) limit $((64 << 20))"
}

# A line a node: its rank, bytes sent, bytes received, as its interface has counted them since it was made.
read_counters() {
    local node folder=/sys/class/net/eth0/statistics
    for node in "${!holders[@]}"; do
        echo "$node" "$(nsenter "--mount=/proc/${holders[node]}/ns/mnt" cat "$folder/tx_bytes" "$folder/rx_bytes" | tr '\n' ' ')"
    done
}

# Ids of the processes that are in one of the networks, the holders included.
processes_inside() {
    local tests=() name
    for name in ${networks[@]+"${networks[@]}"}; do tests+=(-o -lname "${name//[/\\[}"); done
    [ ${#tests[@]} -eq 0 ] || find /proc/[0-9]*/ns/net "${tests[@]:1}" 2>/dev/null | cut -d / -f 3 || true
}

# Of each node there is unshare, the first process and its sleep; of the bridge only a sleep.
only_holders_are_left() {
    [ "$(processes_inside | wc -l)" -le $((1 + 3 * ${#holders[@]})) ]
}

# The kernel removes the namespaces, and with them the links, as soon as the last process is gone.
remove_network() {
    local process end=$((SECONDS + step_s))
    for process in ${holders[@]+"${holders[@]}"} $bridge; do kill -KILL "$process" 2>/dev/null || true; done
    while [ -n "$(processes_inside)" ]; do
        [ "$SECONDS" -le "$end" ] || return 1
        sleep 0.05
    done
}
