// The bridge plugin of the test cluster does not enforce NetworkPolicies. This
// program does, on the one node, with a chain of iptables rules per Pod and
// direction: what a policy does not allow is rejected rather than dropped, so
// that a test of a denial need not wait for a time-out.

package main

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"net"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// The chain in front of everything that is forwarded.
const entry = "NETWORK-POLICIES"

func newNetworkPoliciesCommand() *cobra.Command {
	var kubeconfig string
	command := &cobra.Command{
		Use:          "network-policies",
		Short:        "Enforces NetworkPolicies on the one node of a test cluster",
		SilenceUsage: true,
		RunE:         func(cmd *cobra.Command, _ []string) error { return enforce(cmd, kubeconfig) },
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server")
	return command
}

func enforce(cmd *cobra.Command, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { notify() },
		UpdateFunc: func(any, any) { notify() },
		DeleteFunc: func(any) { notify() },
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	pods, namespaces := factory.Core().V1().Pods(), factory.Core().V1().Namespaces()
	policies := factory.Networking().V1().NetworkPolicies()
	for _, informer := range []cache.SharedIndexInformer{pods.Informer(), namespaces.Informer(), policies.Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	factory.Start(cmd.Context().Done())
	factory.WaitForCacheSync(cmd.Context().Done())

	node := enforcer{pods.Lister(), namespaces.Lister(), policies.Lister(), sets.New[string]()}
	for range changed {
		if err := node.apply(); err != nil {
			fmt.Println(err)
			time.AfterFunc(time.Second, notify)
		}
	}
	return nil
}

type enforcer struct {
	pods       corelisters.PodLister
	namespaces corelisters.NamespaceLister
	policies   networkinglisters.NetworkPolicyLister
	// The chains of the last application: those without a Pod go.
	chains sets.Set[string]
}

func (e *enforcer) apply() error {
	pods, err := e.pods.List(labels.Everything())
	if err != nil {
		return err
	}
	pods = slices.DeleteFunc(pods, func(pod *core.Pod) bool {
		return pod.Spec.HostNetwork || pod.Status.PodIP == "" ||
			pod.Status.Phase == core.PodSucceeded || pod.Status.Phase == core.PodFailed
	})
	policies, err := e.policies.List(labels.Everything())
	if err != nil {
		return err
	}

	var jumps, bodies bytes.Buffer
	chains := sets.New[string]()
	fmt.Fprintf(&jumps, "-A %s -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n", entry)
	for _, pod := range pods {
		for _, direction := range []networking.PolicyType{networking.PolicyTypeIngress, networking.PolicyTypeEgress} {
			rules, isolated := e.rules(pod, direction, policies, pods)
			if !isolated {
				continue
			}
			chain, side := chainName(pod, direction), "-d"
			if direction == networking.PolicyTypeEgress {
				side = "-s"
			}
			chains.Insert(chain)
			fmt.Fprintf(&jumps, "-A %s %s %s -j %s\n", entry, side, pod.Status.PodIP, chain)
			for _, rule := range rules {
				fmt.Fprintf(&bodies, "-A %s %s -j RETURN\n", chain, rule)
			}
			fmt.Fprintf(&bodies, "-A %s -j REJECT\n", chain)
		}
	}

	var input bytes.Buffer
	fmt.Fprintf(&input, "*filter\n:%s - [0:0]\n", entry)
	for chain := range chains.Union(e.chains) {
		fmt.Fprintf(&input, ":%s - [0:0]\n", chain)
	}
	input.Write(jumps.Bytes())
	input.Write(bodies.Bytes())
	for chain := range e.chains.Difference(chains) {
		fmt.Fprintf(&input, "-X %s\n", chain)
	}
	input.WriteString("COMMIT\n")
	if err := iptables(&input, "iptables-restore", "--wait", "--noflush"); err != nil {
		return err
	}
	e.chains = chains
	if iptables(nil, "iptables", "--wait", "--check", "FORWARD", "--jump", entry) == nil {
		return nil
	}
	return iptables(nil, "iptables", "--wait", "--insert", "FORWARD", "--jump", entry)
}

// The traffic of a Pod that policies allow, as iptables matches, and whether any policy
// selects it at all.
func (e *enforcer) rules(pod *core.Pod, direction networking.PolicyType, policies []*networking.NetworkPolicy, pods []*core.Pod) (rules []string, isolated bool) {
	for _, policy := range policies {
		if policy.Namespace != pod.Namespace || !slices.Contains(policy.Spec.PolicyTypes, direction) || !matches(&policy.Spec.PodSelector, pod.Labels) {
			continue
		}
		isolated = true
		if direction == networking.PolicyTypeIngress {
			for _, rule := range policy.Spec.Ingress {
				for _, peer := range e.peers(policy.Namespace, rule.From, pods) {
					rules = append(rules, ports("-s "+peer.address, rule.Ports, pod)...)
				}
			}
		} else {
			for _, rule := range policy.Spec.Egress {
				for _, peer := range e.peers(policy.Namespace, rule.To, pods) {
					rules = append(rules, ports("-d "+peer.address, rule.Ports, peer.pod)...)
				}
			}
		}
	}
	return rules, isolated
}

// The other end of a connection: a range, or a Pod's address with the Pod.
type peer struct {
	address string
	pod     *core.Pod
}

func (e *enforcer) peers(namespace string, wanted []networking.NetworkPolicyPeer, pods []*core.Pod) (found []peer) {
	if len(wanted) == 0 {
		return []peer{{address: "0.0.0.0/0"}}
	}
	for _, want := range wanted {
		if want.IPBlock != nil {
			for _, block := range without(want.IPBlock.CIDR, want.IPBlock.Except) {
				found = append(found, peer{address: block})
			}
			continue
		}
		for _, pod := range pods {
			there := pod.Namespace == namespace
			if want.NamespaceSelector != nil {
				ns, err := e.namespaces.Get(pod.Namespace)
				there = err == nil && matches(want.NamespaceSelector, ns.Labels)
			}
			if there && (want.PodSelector == nil || matches(want.PodSelector, pod.Labels)) {
				found = append(found, peer{pod.Status.PodIP, pod})
			}
		}
	}
	return found
}

// A range without the halves of it that hold an exception, down to the exceptions themselves.
func without(cidr string, except []string) []string {
	_, block, err := net.ParseCIDR(cidr)
	if err != nil || block.IP.To4() == nil {
		return nil
	}
	for _, text := range except {
		_, hole, err := net.ParseCIDR(text)
		if err != nil {
			continue
		}
		ones, _ := block.Mask.Size()
		holeOnes, _ := hole.Mask.Size()
		switch {
		case holeOnes <= ones && hole.Contains(block.IP):
			return nil
		case block.Contains(hole.IP):
			upper := slices.Clone(block.IP.To4())
			upper[ones/8] |= 0x80 >> (ones % 8)
			return append(without(fmt.Sprintf("%s/%d", block.IP, ones+1), except), without(fmt.Sprintf("%s/%d", upper, ones+1), except)...)
		}
	}
	return []string{block.String()}
}

// One match per port; a port's name is that of a container port of the Pod that is called.
func ports(address string, wanted []networking.NetworkPolicyPort, called *core.Pod) (rules []string) {
	if len(wanted) == 0 {
		return []string{address}
	}
	for _, want := range wanted {
		protocol := core.ProtocolTCP
		if want.Protocol != nil {
			protocol = *want.Protocol
		}
		rule := fmt.Sprintf("%s -p %s", address, strings.ToLower(string(protocol)))
		switch {
		case want.Port == nil:
			rules = append(rules, rule)
		case want.Port.Type == intstr.Int && want.EndPort != nil:
			rules = append(rules, fmt.Sprintf("%s --dport %d:%d", rule, want.Port.IntVal, *want.EndPort))
		case want.Port.Type == intstr.Int:
			rules = append(rules, fmt.Sprintf("%s --dport %d", rule, want.Port.IntVal))
		case called != nil:
			for _, container := range called.Spec.Containers {
				for _, port := range container.Ports {
					if port.Name == want.Port.StrVal && port.Protocol == protocol {
						rules = append(rules, fmt.Sprintf("%s --dport %d", rule, port.ContainerPort))
					}
				}
			}
		}
	}
	return rules
}

func matches(selector *meta.LabelSelector, set map[string]string) bool {
	parsed, err := meta.LabelSelectorAsSelector(selector)
	return err == nil && parsed.Matches(labels.Set(set))
}

// iptables allows 28 letters.
func chainName(pod *core.Pod, direction networking.PolicyType) string {
	hash := fnv.New64a()
	hash.Write([]byte(pod.UID))
	return fmt.Sprintf("NP-%.2s-%016x", strings.ToUpper(string(direction)), hash.Sum64())
}

func iptables(input *bytes.Buffer, program string, arguments ...string) error {
	command := exec.Command(program, arguments...)
	if input != nil {
		command.Stdin = bytes.NewReader(input.Bytes())
	}
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(arguments, " "), err, output)
	}
	return nil
}
