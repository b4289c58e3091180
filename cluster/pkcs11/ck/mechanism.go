package ck

// Mech is CK_MECHANISM_TYPE.
type Mech uint32

// The mechanisms that are used here.
const (
	RSAPKCSKeyPairGen Mech = 0x0000
	RSAPKCS           Mech = 0x0001
	RSAX509           Mech = 0x0003
	SHA1RSAPKCS       Mech = 0x0006
	RSAPKCSOAEP       Mech = 0x0009
	RSAX931KeyPairGen Mech = 0x000A
	RSAPKCSPSS        Mech = 0x000D
	SHA1RSAPSS        Mech = 0x000E
	SHA256RSAPKCS     Mech = 0x0040
	SHA384RSAPKCS     Mech = 0x0041
	SHA512RSAPKCS     Mech = 0x0042
	SHA256RSAPSS      Mech = 0x0043
	SHA384RSAPSS      Mech = 0x0044
	SHA512RSAPSS      Mech = 0x0045
	SHA224RSAPKCS     Mech = 0x0046
	SHA224RSAPSS      Mech = 0x0047
	DES3KeyGen        Mech = 0x0131
	DES3ECB           Mech = 0x0132
	DES3CBC           Mech = 0x0133
	DES3CBCPad        Mech = 0x0136
	SHA1              Mech = 0x0220
	SHA1HMAC          Mech = 0x0221
	SHA1HMACGeneral   Mech = 0x0222
	SHA256            Mech = 0x0250
	SHA256HMAC        Mech = 0x0251
	SHA256HMACGeneral Mech = 0x0252
	SHA224            Mech = 0x0255
	SHA224HMAC        Mech = 0x0256
	SHA224HMACGeneral Mech = 0x0257
	SHA384            Mech = 0x0260
	SHA384HMAC        Mech = 0x0261
	SHA384HMACGeneral Mech = 0x0262
	SHA512            Mech = 0x0270
	SHA512HMAC        Mech = 0x0271
	SHA512HMACGeneral Mech = 0x0272
	GenericSecretGen  Mech = 0x0350
	SP800108Counter   Mech = 0x03AC
	ECKeyPairGen      Mech = 0x1040
	ECDSA             Mech = 0x1041
	ECDSASHA1         Mech = 0x1042
	ECDSASHA224       Mech = 0x1043
	ECDSASHA256       Mech = 0x1044
	ECDSASHA384       Mech = 0x1045
	ECDSASHA512       Mech = 0x1046
	ECDH1Derive       Mech = 0x1050
	RSAAESKeyWrap     Mech = 0x1054
	ECEdwardsPairGen  Mech = 0x1055
	EDDSA             Mech = 0x1057
	AESKeyGen         Mech = 0x1080
	AESECB            Mech = 0x1081
	AESCBC            Mech = 0x1082
	AESCBCPad         Mech = 0x1085
	AESCTR            Mech = 0x1086
	AESGCM            Mech = 0x1087
	AESCMAC           Mech = 0x108A
	AESCMACGeneral    Mech = 0x108B
	AESKeyWrap        Mech = 0x2109
	AESKeyWrapPad     Mech = 0x210A
	AESKeyWrapKWP     Mech = 0x210B
	AESKeyWrapPKCS7   Mech = 0x210C
)

// NoMechanism stands for a null pointer: cancel the operation (v3.0).
const NoMechanism Mech = 0xffffffff

// Mechanisms of later versions and of CloudHSM.
const (
	MLKEMKeyPairGen Mech = 0x000F
	MLKEM           Mech = 0x0017
	MLDSAKeyPairGen Mech = 0x001C
	MLDSA           Mech = 0x001D
	CloudHSMAESGCM  Mech = 0x80001087

	CloudHSMAESKWNoPad   Mech = 0x80002109
	CloudHSMAESKWPKCS5   Mech = 0x8000210A
	CloudHSMAESKWZeroPad Mech = 0x8000216F
)
