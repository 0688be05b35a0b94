//! What llava-operator promises, each module a promise, on a real cluster.

mod applies_and_answers;
mod chart;
mod chart_in_use;
mod chart_rights;
mod cluster_admission;
mod cluster_control_plane;
mod cluster_end;
mod cluster_fake_nodes;
mod cluster_faults;
mod cluster_real_node;
mod documented_commands;
mod machine;
mod operator_crashes;
mod operator_meets_oddities;
mod operator_refuses;
mod operator_rests;
mod operator_scales;
mod rolls_out_under_load;
mod router_restarts;
mod scales_under_load;
mod sleeps_and_wakes;
mod survives_api_server_loss;
mod survives_operator_loss;
mod survives_worker_loss;
mod tells_the_cause;
mod upgrades_and_leaves;
