// Package stream is the node's HTTP surface, as upstream's kubelet serves it on
// port 10250: logs, exec, attach, port-forward, pods, statistics, metrics,
// health. Who may do what is asked of two injected functions; without them
// everything but /healthz is refused.
//
//	GET       /containerLogs/{namespace}/{pod}/{container}?follow&tailLines&sinceSeconds&sinceTime&limitBytes&timestamps&previous&stream
//	GET|POST  /exec/{namespace}/{pod}[/{uid}]/{container}?command&input&output&error&tty
//	GET|POST  /attach/{namespace}/{pod}[/{uid}]/{container}?input&output&error&tty
//	GET|POST  /portForward/{namespace}/{pod}[/{uid}]?port
//	GET       /pods /runningpods/ /healthz /configz /stats/summary /metrics /metrics/resource /metrics/cadvisor /metrics/probes
//
// Exec, attach and port-forward speak SPDY and WebSocket; a WebSocket client of
// port-forward may tunnel SPDY (SPDY/3.1+portforward.k8s.io). Authorization is by
// the attributes of upstream's kubelet: verb by method, resource nodes,
// subresource proxy, log, metrics, stats, pods, healthz or configz.
package stream
