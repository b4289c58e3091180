#include "module.h"
#include "call.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* How long a call waits for a daemon that is being restarted, and C_Finalize for one
 * to say goodbye. Seconds. */
#define RECONNECT 5
#define FAREWELL 5

#define HANDSHAKE "PRIVATE-GNOME-KEYRING-PKCS11-PROTOCOL-V-1"

static const struct call_info call_initialize = {1, "ayyay", "", false, false};
static const struct call_info call_finalize = {2, "", "", false, false};

/* The connection being made is guarded by connecting, which is taken first; the rest
 * by lock, which is never held while anything waits. */
static struct {
	pthread_mutex_t connecting, lock;
	bool initialized, registered, makes_iv;
	char *path;
	int bound;         /* of a call, in seconds */
	struct conn *conn; /* the current one, or the last; a reference */
	uint32_t generation;
	uint32_t failures; /* attempts to make a new connection that failed */
	struct conn *abandoned; /* of the parent: never touched again, but not lost */
} module = {.connecting = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER};

/* Fork. The child has no connection and is not initialised; the parent goes on as if
 * nothing had happened. lock is held across the fork, so what it guards is whole. */
static void before_fork(void) { pthread_mutex_lock(&module.lock); }
static void after_fork_parent(void) { pthread_mutex_unlock(&module.lock); }

static void after_fork_child(void)
{
	pthread_mutex_init(&module.connecting, NULL); /* whoever held it is not here */
	module.initialized = false;
	if (module.conn != NULL)
		conn_abandon(module.conn);
	module.abandoned = module.conn;
	module.conn = NULL;
	free(module.path);
	module.path = NULL;
	pthread_mutex_unlock(&module.lock);
}

/* greet_daemon says to the daemon that an application begins. */
static CK_RV greet_daemon(struct conn *conn)
{
	struct call c;
	call_begin_on(&c, &call_initialize, conn);
	put_bytes(&c, HANDSHAKE, sizeof HANDSHAKE - 1);
	put_byte(&c, 0);
	put_bytes(&c, "", 1);
	call_run(&c);
	return call_end(&c);
}

/* connect_once gives CKR_DEVICE_REMOVED if nobody listens, CKR_DEVICE_ERROR for one
 * who does and hangs. With connecting held. */
static CK_RV connect_once(const char *path, int bound, uint32_t generation, struct conn **out)
{
	struct conn *conn = conn_open(path, generation, bound);
	if (conn == NULL)
		return errno == ENOMEM ? CKR_HOST_MEMORY : errno == ETIMEDOUT || errno == EAGAIN ? CKR_DEVICE_ERROR : CKR_DEVICE_REMOVED;
	CK_RV rv = greet_daemon(conn);
	if (rv == CKR_OK) {
		*out = conn;
		return CKR_OK;
	}
	conn_fail(conn);
	conn_unref(conn);
	return rv;
}

static void pause_briefly(void)
{
	struct timespec pause = {.tv_nsec = 50000000};
	nanosleep(&pause, NULL);
}

static bool past(const struct timespec *start, time_t seconds)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec - start->tv_sec >= seconds;
}

/* connect_patiently waits for a daemon that is away. With connecting held. */
static CK_RV connect_patiently(const char *path, int bound, uint32_t generation, struct conn **out)
{
	struct timespec start;
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (;;) {
		CK_RV rv = connect_once(path, bound, generation, out);
		if (rv != CKR_DEVICE_REMOVED || past(&start, RECONNECT))
			return rv;
		pause_briefly();
	}
}

/* current takes a reference to the connection, if the application may use it. It says
 * too how often making one has failed so far. */
static CK_RV current(bool alive, struct conn **out, uint32_t *failures)
{
	CK_RV rv = CKR_OK;
	pthread_mutex_lock(&module.lock);
	*failures = module.failures;
	if (!module.initialized)
		rv = CKR_CRYPTOKI_NOT_INITIALIZED;
	else if (alive && conn_dead(module.conn))
		rv = CKR_DEVICE_REMOVED;
	else
		*out = conn_ref(module.conn);
	pthread_mutex_unlock(&module.lock);
	return rv;
}

/* replace makes a connection in place of the failed one. Path and bound do not change
 * while connecting is held. */
static CK_RV replace(void)
{
	struct conn *fresh = NULL, *old = NULL;
	pthread_mutex_lock(&module.lock);
	uint32_t generation = ++module.generation;
	pthread_mutex_unlock(&module.lock);
	CK_RV rv = connect_patiently(module.path, module.bound, generation, &fresh);
	pthread_mutex_lock(&module.lock);
	if (rv == CKR_OK) {
		old = module.conn;
		module.conn = fresh;
	} else {
		module.failures++;
	}
	pthread_mutex_unlock(&module.lock);
	if (old != NULL)
		conn_unref(old);
	return rv == CKR_DEVICE_REMOVED ? CKR_DEVICE_ERROR : rv;
}

CK_RV module_connection(bool alive, struct conn **out)
{
	uint32_t before, now;
	CK_RV rv = current(alive, out, &before);
	if (rv != CKR_DEVICE_REMOVED)
		return rv;
	pthread_mutex_lock(&module.connecting);
	rv = current(alive, out, &now); /* another thread may have been faster */
	if (rv == CKR_DEVICE_REMOVED && now != before) {
		rv = CKR_DEVICE_ERROR; /* or have found nobody while this one waited */
	} else if (rv == CKR_DEVICE_REMOVED) {
		rv = replace();
		if (rv == CKR_OK)
			rv = current(false, out, &now);
	}
	pthread_mutex_unlock(&module.connecting);
	return rv;
}

bool module_initialized(void)
{
	pthread_mutex_lock(&module.lock);
	bool initialized = module.initialized;
	pthread_mutex_unlock(&module.lock);
	return initialized;
}

bool module_makes_iv(void)
{
	pthread_mutex_lock(&module.lock);
	bool makes = module.makes_iv;
	pthread_mutex_unlock(&module.lock);
	return makes;
}

static CK_RV check_arguments(const CK_C_INITIALIZE_ARGS *args)
{
	if (args == NULL)
		return CKR_OK;
	int given = (args->CreateMutex != NULL) + (args->DestroyMutex != NULL) +
		    (args->LockMutex != NULL) + (args->UnlockMutex != NULL);
	if (args->pReserved != NULL || (given != 0 && given != 4))
		return CKR_ARGUMENTS_BAD;
	return given == 4 && (args->flags & CKF_OS_LOCKING_OK) == 0 ? CKR_CANT_LOCK : CKR_OK;
}

/* register_fork is done once, and stands for as long as the module is loaded. */
static CK_RV register_fork(void)
{
	if (!module.registered && pthread_atfork(before_fork, after_fork_parent, after_fork_child) != 0)
		return CKR_HOST_MEMORY;
	module.registered = true;
	return CKR_OK;
}

/* start connects the application. With connecting held. An absent daemon is an error
 * here, said at once: an application that is told of no slots would give up its keys
 * for lost. */
static CK_RV start(void)
{
	struct conn *conn = NULL;
	bool makes_iv = true;
	int bound = daemon_bound();
	char *path = bound == 0 || !daemon_makes_iv(&makes_iv) ? NULL : daemon_address();
	if (path == NULL)
		return CKR_FUNCTION_FAILED;
	pthread_mutex_lock(&module.lock);
	uint32_t generation = module.generation++;
	pthread_mutex_unlock(&module.lock);
	CK_RV rv = connect_once(path, bound, generation, &conn);
	if (rv != CKR_OK) {
		free(path);
		return rv == CKR_DEVICE_REMOVED || rv == CKR_DEVICE_ERROR ? CKR_FUNCTION_FAILED : rv;
	}
	pthread_mutex_lock(&module.lock);
	module.path = path;
	module.bound = bound;
	module.makes_iv = makes_iv;
	module.conn = conn;
	module.initialized = true;
	pthread_mutex_unlock(&module.lock);
	return CKR_OK;
}

CK_RV C_Initialize(CK_VOID_PTR pInitArgs)
{
	CK_RV rv = check_arguments(pInitArgs);
	if (rv != CKR_OK)
		return rv;
	pthread_mutex_lock(&module.connecting);
	if (module.initialized)
		rv = CKR_CRYPTOKI_ALREADY_INITIALIZED;
	else
		rv = register_fork();
	if (rv == CKR_OK)
		rv = start();
	pthread_mutex_unlock(&module.connecting);
	return rv;
}

/* bid_farewell tells the daemon that the application ends: the end of the connection
 * alone would not, while a forked child holds it. */
static void bid_farewell(struct conn *conn)
{
	struct call c;
	call_begin_on(&c, &call_finalize, conn);
	c.bound = conn_bound(conn) < FAREWELL ? conn_bound(conn) : FAREWELL;
	call_run(&c);
	call_end(&c);
}

CK_RV C_Finalize(CK_VOID_PTR pReserved)
{
	if (pReserved != NULL)
		return CKR_ARGUMENTS_BAD;
	pthread_mutex_lock(&module.connecting);
	pthread_mutex_lock(&module.lock);
	struct conn *conn = module.initialized ? module.conn : NULL;
	char *path = module.path;
	module.initialized = false;
	if (conn != NULL) {
		module.conn = NULL;
		module.path = NULL;
	}
	pthread_mutex_unlock(&module.lock);
	if (conn != NULL) {
		bid_farewell(conn);
		conn_fail(conn);
		conn_unref(conn);
		free(path);
	}
	pthread_mutex_unlock(&module.connecting);
	return conn != NULL ? CKR_OK : CKR_CRYPTOKI_NOT_INITIALIZED;
}
