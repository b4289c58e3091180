// Package cloudhsm reads and edits the configuration files of CloudHSM's clients,
// so that what people have configured there holds here too:
//
//   - the files of Client SDK 5, one for each component (cloudhsm-pkcs11.cfg, …),
//     in which options.disable_key_availability_check turns the key availability
//     quorum off;
//   - the file of Client SDK 3, cloudhsm_client.cfg, in which
//     create_object_minimum_nodes says on how many HSMs a key must be created;
//   - the file of its management utility, cloudhsm_mgmt_util.cfg, which lists the
//     servers that the utility talks to.
//
// All are JSON. What is read of them is checked strictly, by name; what is not
// known is kept as it is, in its order. A File turns into a cluster.Policy.
package cloudhsm
