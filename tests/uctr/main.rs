//! Drives `uctr` as its users do. Everything happens in mount and network namespaces of the tests' own.

mod support;
