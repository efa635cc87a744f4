//! What Istio's dashboards (mesh, service, workload, performance, control plane) and Kiali's graph ask for: written here from the
//! metrics and labels that they are documented to use.

pub const QUERIES: [&str; 34] = [
    // Mesh.
    "sum(rate(istio_requests_total{reporter=~\"source|waypoint\"}[30s]))",
    "sum(rate(istio_requests_total{reporter=~\"source|waypoint\",response_code!~\"5.*\"}[30s])) / sum(rate(istio_requests_total{reporter=~\"source|waypoint\"}[30s]))",
    "label_join(sum(rate(istio_requests_total{reporter=~\"source|waypoint\"}[30s])) by (destination_workload, destination_workload_namespace, destination_service), \"destination_workload_var\", \".\", \"destination_workload\", \"destination_workload_namespace\")",
    "label_join(histogram_quantile(0.90, sum(rate(istio_request_duration_milliseconds_bucket{reporter=~\"source|waypoint\"}[30s])) by (le, destination_workload, destination_workload_namespace)), \"destination_workload_var\", \".\", \"destination_workload\", \"destination_workload_namespace\")",
    "sum(istio_build) by (component, tag)",
    "pilot_xds",
    // Service.
    "round(sum(irate(istio_requests_total{reporter=\"source\",destination_service=~\".+\"}[30s])), 0.001)",
    "sum(irate(istio_requests_total{reporter=\"destination\",destination_service=~\".+\",response_code!~\"5.*\"}[30s])) / sum(irate(istio_requests_total{reporter=\"destination\",destination_service=~\".+\"}[30s]))",
    "histogram_quantile(0.99, sum(irate(istio_request_duration_milliseconds_bucket{reporter=\"source\"}[30s])) by (le)) / 1000",
    "histogram_quantile(0.50, sum(irate(istio_request_duration_milliseconds_bucket{reporter=\"destination\"}[30s])) by (le, source_workload, source_workload_namespace)) / 1000",
    "round(sum(irate(istio_requests_total{connection_security_policy=\"mutual_tls\",reporter=\"destination\"}[30s])) by (source_workload, source_workload_namespace, response_code), 0.001)",
    "round(sum(irate(istio_requests_total{connection_security_policy!=\"mutual_tls\",reporter=\"source\"}[30s])) by (destination_workload, destination_workload_namespace, response_code), 0.001)",
    "histogram_quantile(0.95, sum(irate(istio_request_bytes_bucket{reporter=\"destination\"}[30s])) by (source_workload, source_workload_namespace, le))",
    "histogram_quantile(0.95, sum(irate(istio_response_bytes_bucket{reporter=\"destination\"}[30s])) by (source_workload, source_workload_namespace, le))",
    "round(sum(irate(istio_tcp_received_bytes_total{reporter=\"destination\"}[30s])) by (source_workload), 0.001)",
    // Workload.
    "sum(istio_requests_total) by (destination_workload_namespace)",
    "sum(istio_requests_total{destination_workload_namespace=~\"ecotrack\"}) by (destination_workload)",
    "round(sum(irate(istio_requests_total{reporter=~\"destination|source\",source_workload=~\".+\"}[30s])) by (destination_service, response_code), 0.001)",
    "histogram_quantile(0.90, sum(irate(istio_request_duration_milliseconds_bucket{reporter=\"source\",source_workload_namespace=~\"ecotrack\"}[30s])) by (destination_service, le)) / 1000",
    // Performance and control plane.
    "sum(envoy_cluster_upstream_cx_active)",
    "envoy_server_memory_physical_size",
    "process_virtual_memory_bytes{job=\"weft-control\"}",
    "process_resident_memory_bytes{job=\"weft-control\"}",
    "irate(process_cpu_seconds_total{job=\"weft-control\"}[30s])",
    "sum(irate(pilot_xds_pushes[30s])) by (type)",
    "sum(pilot_total_xds_rejects) by (type)",
    "sum(rate(pilot_xds_push_time_bucket[30s])) by (le)",
    "sum(rate(pilot_xds_config_size_bytes_bucket[30s])) by (le)",
    "histogram_quantile(0.5, sum(rate(pilot_proxy_convergence_time_bucket[30s])) by (le))",
    "sum(rate(pilot_push_triggers[30s])) by (type)",
    "avg(pilot_services)",
    "sum(pilot_info) by (version)",
    "sum by (pod) (citadel_server_root_cert_expiry_timestamp) - time()",
    // Kiali's graph.
    "sum(rate(istio_requests_total{reporter=\"source\",source_workload_namespace=\"ecotrack\"}[30s])) by (source_cluster, source_workload_namespace, source_workload, source_canonical_service, source_canonical_revision, destination_cluster, destination_service_namespace, destination_service, destination_service_name, destination_workload_namespace, destination_workload, destination_canonical_service, destination_canonical_revision, request_protocol, response_code, grpc_response_status, response_flags) > 0",
];
