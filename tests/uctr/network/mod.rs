//! Networks, published ports and names (S88–S99). The test's own network namespace is the host; other
//! hosts are network namespaces that are connected with it.

mod crash_matrix;
mod hosts;
mod networks;
mod ports;
mod traces;
